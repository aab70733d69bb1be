"""A run in Prefect's own page: names, artifacts, an event a round, retries, the limit on cards.

Nothing here is what a round needs: where no server stays to look at it, none of it is done.
"""
