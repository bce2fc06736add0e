"""Whole commands beside those of other programs that train networks: the group "peers".

measure.py takes the times, studies.py makes the images and the recipe, job.py says to a peer's
program what to train; the other files are those programs, each as its library's users write it.
"""
