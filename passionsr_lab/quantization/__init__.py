"""The paper: quantizer (LBQ), transform (LET), layers with slots, recipes, putting in and taking out."""
