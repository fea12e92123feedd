"""What supernets are trained on and for, one file per task."""
