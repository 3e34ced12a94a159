"""`hetjax data …`: what the data of a run is like, and the data in another format."""
