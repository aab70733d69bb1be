"""`videoopd study`: arms, seeds and rates; the runs, the report, the verdicts."""
