"""Answers: of the policy, of the teacher, or the truth as an answer."""
