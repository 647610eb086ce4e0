"""Before against after: numbers, pairs and pages."""
