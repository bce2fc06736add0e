"""What a study found: metrics, the alternatives to fusion, costs, tables."""
