"""A verdict for programs and a page for people, made of what was collected. Runs on the controller."""
