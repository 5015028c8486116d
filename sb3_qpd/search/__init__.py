"""
The search for the smallest student that plays as well as its teacher.

Follow a search from :mod:`~sb3_qpd.search.frontier`, which builds its parts, to :mod:`~sb3_qpd.search.scheduler`, which runs
the trials, and to :mod:`~sb3_qpd.search.work`, which trains and scores a student in a worker.
"""
