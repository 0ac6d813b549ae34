"""The results as a local web app: the pages of `ksearch.pages`, served from the database as it changes.

Everything is read, nothing is written; `server.serve` runs it, `app.make_app` is the ASGI application.
"""
