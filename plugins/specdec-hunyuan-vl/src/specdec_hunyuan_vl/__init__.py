"""Backbone `hunyuan-vl`: HunyuanVL models such as HunyuanOCR."""
