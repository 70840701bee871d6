"""`dspa-bench view`: the report's page served from run folders, live while they grow, with traces of steered answers.

watched.py (a run folder and the page made of it), traces.py (what steering did to an answer), server.py (HTTP).
"""
