"""Tables, figures and pages about what was measured."""
