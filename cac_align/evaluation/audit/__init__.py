"""Is this judge a reward? What it sees, where it points, what moves it, and what it costs.

AuditPairs, groups of videos → ``run.audit_reward`` → AuditReport (flags, sentences, numbers)
"""
