"""The measurements: `hetjax bench NAME`, one file each."""
