"""A small world of drawn people, in which "the person in the photo is the person in the video" can be measured exactly.

``people`` says who there is, ``scenes`` what happens, ``render`` draws it. Everything follows from seeds. The pack does
not import this folder; tests, the demo and the training of the tiny models do.
"""
