"""What the method's scripts share: dataset -> filters -> model -> losses -> evaluate -> results."""
