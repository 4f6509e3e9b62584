"""Experimental design: information gain, optimisers over designs and the closed loop have their place here."""

__all__: list[str] = []
