"""Measuring what planning needs: how long the stages of a workflow take here, batch by batch, and how often they run"""
