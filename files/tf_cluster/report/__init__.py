"""Make the verdict (JSON) and the page (HTML) of a collected run. Runs on the controller."""
