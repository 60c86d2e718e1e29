"""The overlays as people deploy them: built, checked, applied, asked.

build.py runs Kustomize, objects.py reads what comes out, checks/ says what is wrong with it and what to do; deploy.py,
download.py and smoke.py are the commands that talk to a cluster or to the API. Everything in checks/ is pure: objects
in, findings out, so that the tests can break a build in memory and see whether it is noticed.
"""
