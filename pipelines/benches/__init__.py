"""What `pv3d bench` measures, a file each; `pipelines/bench.py` names them."""
