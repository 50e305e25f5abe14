"""EAGLE heads: one Transformer layer that predicts the target's next state, and the next token from that. EAGLE-1 (Li
et al., ICML 2024; static tree), EAGLE-2 (Li et al., EMNLP 2024; dynamic tree, the same weights) and EAGLE-3 (Li et al.,
NeurIPS 2025; three taps and an LM head of its own). As trees and as chains."""
