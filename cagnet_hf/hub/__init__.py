"""The way to the Hub: cards, repositories, uploads."""
