"""Networks: training supernets, bringing in those of others, and writing subnets as files."""
