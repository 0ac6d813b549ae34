"""What a page shows of the results: views read from the store, figures, and fragments of HTML.

The static report (`static`, `markdown`) and the web app are made of the same views and fragments.
"""
