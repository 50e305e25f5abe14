"""The web page: a server that speaks with the browser, and measured processes that speak with the server only."""
