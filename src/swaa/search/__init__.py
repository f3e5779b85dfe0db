"""The search for recipes: which layers or heads keep full attention, under a budget."""
