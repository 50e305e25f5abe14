"""The web page: the server that speaks with the browser, and the measured processes, which speak with the server only."""
