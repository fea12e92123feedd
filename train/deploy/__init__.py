"""Using what was trained: classifying pictures, a service, a page to look at."""
