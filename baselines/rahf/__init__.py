"""rahf_scit and rahf_dual, arXiv 2312.15997: stage 1 tells good answers from bad ones, stage 2 fits the activities."""
