"""Weights from elsewhere as supernets: timm, and the meta-networks of PRANCE's authors."""
