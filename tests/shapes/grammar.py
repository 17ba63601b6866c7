"""Grammar that tests of captions share."""


def participle(phrase: str) -> str:
    """ "goes to the left" -> "going to the left"."""
    verb, _, rest = phrase.partition(" ")
    return (verb[:-2] if verb.endswith("es") else verb[:-1]) + "ing" + (rest and " " + rest)
