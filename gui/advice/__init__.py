"""The Advice tab: what would make the plan fit, or give it room."""
