"""A corpus or a service on many machines: a model as an object for Ray Data, Dask, joblib and Spark, and in Ray Serve.

Only `Map.apply` and `deployment` need Ray: `pip install 'rnnfast[ray]'`.
"""

from rnnfast.ray.map import Map as Map
from rnnfast.ray.service import deployment as deployment

__all__ = ["Map", "deployment"]
