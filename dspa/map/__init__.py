"""The conditional-difference map: condiff.py estimates it, in the rows of sparse.py, and truncated.py cuts it down.

shipped.py is what an artifact holds of it (packing.py: in little space), bootstrap.py how sure a score is.
"""

from dspa.map.condiff import ConditionalDifferenceMap, Gate
from dspa.map.shipped import MapOptions, ShippedMap
from dspa.map.truncated import TruncatedMap

__all__ = ["ConditionalDifferenceMap", "Gate", "MapOptions", "ShippedMap", "TruncatedMap"]
