"""Answers: of the policy, of policy 0, of the teacher, or the truth as an answer."""
