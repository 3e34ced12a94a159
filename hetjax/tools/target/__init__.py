"""`train.py --target`: a run checked against devices that are not there, in tables, JSON and a picture."""
