"""A config with two teachers, as people write one."""

SEVERAL = """
run.path = "run"
data.train = "train.jsonl"
data.eval = "eval.jsonl"
data.videos = "videos"
student.path = "./models/student"

[[teachers]]
name = "large"
path = "./models/x-32b"
takes = { source = ["charades", "tall*"] }

[[teachers]]
name = "small"
path = "./models/x-8b"
predictions = 2
"""
