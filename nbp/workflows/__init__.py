"""What joins the parts: tokenizing, generating, reconstructing, opening and scoring sets of clips."""
