"""What `videoopd bench` measures: trees, tables, the store, whole rounds, kills, idle commands."""
