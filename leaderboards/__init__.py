"""Leaderboards: results/<suite>/ holds one small JSON a cell, <suite>/<task>.csv is made from them."""
