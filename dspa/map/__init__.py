"""The conditional-difference map: condiff.py estimates it and cuts it down, in the rows of sparse.py.

artifact_map.py is what an artifact holds of it, and says how sure a score is.
"""
