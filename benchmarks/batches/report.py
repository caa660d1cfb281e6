FIGURES = {}


def draw():
    pass
