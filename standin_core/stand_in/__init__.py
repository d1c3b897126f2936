"""Stand-In (arXiv 2508.07901): an adapter gives a frozen Wan an identity branch, whose K and V the video reads."""
