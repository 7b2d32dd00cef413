"""The What fits tab: other loads on this card, and this load on other cards."""
