class Posterior:
    pass


def infer(*a):
    pass
