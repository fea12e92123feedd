"""What an adaptive network needs to be deployed: plain policies, pictures, budgets, menus and files."""
