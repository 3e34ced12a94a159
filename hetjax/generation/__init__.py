"""Generation: from prompts to answers, with every module on the meshes that training left it on."""
