"""The paper's figures from our records; Figure 2 is a drawing."""
